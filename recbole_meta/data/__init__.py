"""Protocols, prepared folders and episodes: from interactions to tasks."""
