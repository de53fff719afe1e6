"""The transcriber over HTTP and WebSockets; an aiohttp application that also fits into another."""
