"""Many runs: one experiment as a spec, sweeps of them, local and on a cluster."""
