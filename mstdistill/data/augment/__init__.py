"""Training instances changed at random, each by numbers of its own: seed, epoch and position alone decide."""
