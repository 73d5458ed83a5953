"""A goal-conditioned policy that proposes an allocation before anything is evaluated."""
