"""The benchmark: suites of tasks, equal budgets, results that replay, and a leaderboard of those that did."""
