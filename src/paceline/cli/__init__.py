"""The commands: one file a command, thin. Heavy imports wait inside the command, so that --help answers at once."""
