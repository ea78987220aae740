"""Data files of problems and chats: JSONL, parquet and Arrow, their fields, and chat messages."""
