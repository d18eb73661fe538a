"""Where latency is measured: this machine, or a device over ssh, behind one protocol."""
