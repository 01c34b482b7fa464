"""Four workers share a study. Four times as many trials are trained, and nothing more is found out.

python lessons/12-hyperparameter-search/exercises/2_same_trials.py

Repair work(): no two trials alike, and the same search comes out again when it is repeated.
"""

import optuna


def work(study_name, storage, worker, seed, trials):
    """What each of the workers does. worker: its number. seed: of the whole search."""
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.load_study(study_name=study_name, storage=storage, sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("lr", 1e-4, 1e-1, log=True), n_trials=trials)


if __name__ == "__main__":
    optuna.logging.disable_default_handler()
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="lr", storage=storage)
    for worker in range(4):
        work("lr", storage, worker, seed=1, trials=3)
    for trial in study.trials:
        print(f"trial {trial.number:2}: lr {trial.params['lr']:.5f}")
