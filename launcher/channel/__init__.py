"""The group channel: one port, HTTP for watchers, a WebSocket on the leader on which workers join and stay."""
