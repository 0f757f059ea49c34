"""The command line: one file a command, the options derived from the settings."""
