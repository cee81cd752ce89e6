"""`lwsrun smoke`: real collectives over the whole group, before anybody trusts it with a model."""
