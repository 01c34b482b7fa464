"""Learning rates from 0.00001 to 0.1 are searched, and hardly a trial is below 0.001.

python lessons/12-hyperparameter-search/exercises/1_learning_rates.py

Repair learning_rate().
"""

import optuna


def learning_rate(trial):
    """A learning rate from 1e-5 to 1e-1, each order of magnitude as often as the others."""
    return trial.suggest_float("lr", 1e-5, 1e-1)


if __name__ == "__main__":
    optuna.logging.disable_default_handler()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    print(*sorted(f"{learning_rate(study.ask()):.5f}" for _ in range(20)))
