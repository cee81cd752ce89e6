"""`lwsrun check`: what in this pod or image would keep a group from working, before anything is started."""
