"""Procedural rooms and streets: what stands in them, how they are drawn, and their frames, rendered ahead."""

from kp_training.data.rooms.source import RoomFrames, open_rooms, write_rooms

__all__ = ["RoomFrames", "open_rooms", "write_rooms"]
