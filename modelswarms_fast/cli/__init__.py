"""The command line, one file a command.

`main` starts it and handles errors. `options` derives the options from the settings, `config_file` reads them from a
file, `summary` prints the end of a search, and `dry_run` what one would do. The commands are `search`, `resume`,
`evaluate`, `report`, `sweep`, `study`, `compare`, `token_swarm`,
`serve` and `demo`.
"""
