"""Solution: what spans orders of magnitude is drawn from its logarithm. run.py calls it log:1e-5..1e-1.

python lessons/12-hyperparameter-search/exercises/solutions/1_learning_rates.py
"""

import optuna


def learning_rate(trial):
    """A learning rate from 1e-5 to 1e-1, each order of magnitude as often as the others."""
    return trial.suggest_float("lr", 1e-5, 1e-1, log=True)


if __name__ == "__main__":
    optuna.logging.disable_default_handler()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    print(*sorted(f"{learning_rate(study.ask()):.5f}" for _ in range(20)))
