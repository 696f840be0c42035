"""One module per verb of `geoalign-hf`: the options, and the function that runs the verb."""
