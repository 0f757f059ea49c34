"""The command line: `main` and `more` have the commands, `options` what they share, `bench` runs the benchmarks."""
