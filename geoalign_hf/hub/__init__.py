"""Model cards, dataset cards and pushing to the Hub."""
