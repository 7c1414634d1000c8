"""Steps that data sets share: audio, speech synthesis."""
