"""An engine and a processor without a model, for `--model fake`: HTTP behaviour without torch."""
