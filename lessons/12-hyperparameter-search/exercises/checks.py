"""Are the exercises of this lesson right? See lessons/check.py."""

import math

import optuna

optuna.logging.disable_default_handler()


def learning_rates(exercise):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rates = [exercise.learning_rate(study.ask()) for _ in range(400)]
    if not 1e-5 <= min(rates) <= max(rates) <= 1e-1:
        return f"the learning rates go from {min(rates):g} to {max(rates):g}"
    shares = [sum(math.floor(math.log10(rate)) == power for rate in rates) / len(rates) for power in (-5, -4, -3, -2)]
    if not all(0.15 < share < 0.35 for share in shares):
        return f"only {shares[0] + shares[1]:.1%} of them are below 0.001, and it should be half. What is drawn evenly?"


def search(exercise, seed):
    """The learning rates that each of four workers has tried."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="lr", storage=storage)
    for worker in range(4):
        exercise.work("lr", storage, worker, seed, 3)
    return [trial.params["lr"] for trial in study.trials]


def same_trials(exercise):
    first, again, other = search(exercise, 1), search(exercise, 1), search(exercise, 2)
    if len(first) != 12:
        return f"four workers with three trials each make {len(first)} trials"
    if len(set(first)) < 12:
        return f"of 12 trials {len(set(first))} differ. What do the workers' samplers have in common?"
    if first != again:
        return "no two trials are alike, and the search is another one each time it is repeated"
    if first == other:
        return "the seed of the search changes nothing any more"
