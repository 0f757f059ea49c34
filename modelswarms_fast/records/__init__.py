"""What a run leaves behind: `run_folder` has its files, `schemas` what they hold, `checks` whether they do,
`own_files` the list of them, `score_file` the scores as they come, `progress` the bar, `stopping` the signals that end
it, `trace` the timeline, `metrics_log` the numbers for TensorBoard and Weights & Biases. `report` writes the HTML page
with the sentences of `gain` and the drawings of `plots`, `style` says how every plot looks, `analysis/` has the numbers
that a report shows."""
