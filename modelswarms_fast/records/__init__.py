"""What a run leaves behind: `run_folder` has its files, `progress` the bar, `trace` the timeline, `report` and `plots`
what is drawn of it, `analysis/` the numbers that a report shows."""
