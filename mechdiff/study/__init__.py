"""One network, or all of a study, from end to end; and the verdicts on claims."""
