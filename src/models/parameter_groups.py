"""Parameters in groups by the patterns of their names, each with settings of the optimizer of its own."""

import sys
from fnmatch import fnmatchcase


def parameter_groups(parameters, patterns):
    """Put each parameter in exactly one group: those that the same patterns fit are together.

    Args:
        parameters: (name, parameter) pairs
        patterns: {pattern: {setting: value}}, such as {"encoder.*": {"lr": 1e-4}, "*.bias": {"weight_decay": 0.0}}.
            Every pattern that fits a name counts; where two give the same setting, the later wins.
    Returns:
        groups as torch's optimizers take them, each with a name: the patterns that fit, or "rest"
    Raises:
        SystemExit: a pattern fits no name
    """
    parameters = list(parameters)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name, _ in parameters):
            first = ", ".join(name for name, _ in parameters[:4])
            sys.exit(f"parameter_groups: no parameter is called like {pattern!r}: they are {first}, ...")
    groups = {}
    for name, parameter in parameters:
        fitting = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        group = " and ".join(fitting) or "rest"
        settings = {key: value for pattern in fitting for key, value in patterns[pattern].items()}
        groups.setdefault(group, {"params": [], "name": group, **settings})["params"].append(parameter)
    return list(groups.values())


def make_optimizer(optimizer, parameters, patterns):
    """The optimizer for these groups.

    Args:
        optimizer: a function of parameters or groups that returns a torch optimizer
        parameters, patterns: see parameter_groups()
    Raises:
        SystemExit: a pattern fits no name, or a setting is none of this optimizer's (torch would ignore it)
    """
    made = optimizer(parameter_groups(parameters, patterns))
    for pattern, settings in patterns.items():
        for setting in settings:
            if setting not in made.defaults:
                name, known = type(made).__name__, ", ".join(made.defaults)
                sys.exit(f"parameter_groups: {pattern!r}: {name} has no {setting}, but {known}")
    return made
