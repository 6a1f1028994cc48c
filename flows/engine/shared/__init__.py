"""A store that several machines share: its files behind a URL, leases, and the local folder before it."""
