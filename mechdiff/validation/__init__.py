"""Can the results be trusted: planted circuits whose truth is known, calibration of every test."""
