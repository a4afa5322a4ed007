"""Secure sums: the server learns the sum of the clients' integers and nothing else of them."""
