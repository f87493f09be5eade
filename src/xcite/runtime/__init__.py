"""From weights to a checked bundle, a predictor and a server."""
