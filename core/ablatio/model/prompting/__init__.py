"""Prompt programs: questions, examples and replies, and a language model as text in, text out."""
