"""The controller: the loop, λ, statistics, records, metrics, configuration and the command line."""
