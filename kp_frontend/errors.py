"""The one error for what a user gave us and we cannot use."""


class InputError(ValueError):
    """Input that cannot be used: the message says what was seen, what was expected and what to do.

    Command lines print it as one line and exit with code 2; nodes log it (throttled), count it in
    diagnostics and go on with the next frame.
    """


def unknown_name(kind: str, name: object, valid) -> InputError:
    """Error for a name that is in no table, listing the names that are."""
    return InputError(f"unknown {kind} {name!r}; choose one of: {', '.join(sorted(map(str, valid)))}")
