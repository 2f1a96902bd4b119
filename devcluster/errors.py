"""The one error of this package: something the person at the keyboard can act on."""


class DevclusterError(Exception):
    """The cluster cannot do what was asked; the message says why and what to do about it."""
