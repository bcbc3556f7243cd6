"""One network, or all networks of a study, from end to end; verdicts on claims."""
