"""Search spaces, proposals, and the sweeps that train them. Ray, optuna and torch load when a sweep runs."""
