"""The one error that is shown to users: a single clear sentence that names the thing and the mend."""


class UserError(ValueError):
    """Bad flag, checkpoint, file or request. Commands print it and exit with 2; a server answers 400."""
