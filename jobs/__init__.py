"""Command-line entry points: parse, configure, run one workflow, summarise, exit."""
