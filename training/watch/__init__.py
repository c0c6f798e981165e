"""What looks at a run and changes nothing in it: phases, traffic, profiles, monitors, the terminal."""
