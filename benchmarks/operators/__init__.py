"""The update and the mix alone, beside plain loops over as much memory and beside the same in torch."""
