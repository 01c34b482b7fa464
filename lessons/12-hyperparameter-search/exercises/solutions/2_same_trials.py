"""Solution: each worker draws from a sampler of its own, so it needs a seed of its own.

python lessons/12-hyperparameter-search/exercises/solutions/2_same_trials.py

Python's random.Random(f"{seed} {worker}") would do as well. seed + worker is not enough where searches with the
seeds 1 and 2 are compared: they would share all but one worker.
"""

import optuna


def work(study_name, storage, worker, seed, trials):
    """What each of the workers does. worker: its number. seed: of the whole search."""
    sampler = optuna.samplers.RandomSampler(seed=1000 * seed + worker)
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
