"""Making a group ready for mpirun: what the image has, keys, sshd and its gate, the first login. Imported only then."""
