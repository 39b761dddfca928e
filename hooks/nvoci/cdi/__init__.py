"""The Container Device Interface: specifications read, checked, written, looked up, and injected into an OCI config.

Standard library only, but for YAML. Pure data is in `model`, what names may be in `names`, what each version can say in
`version`; nothing here looks at the node (`nvoci.generate` does that) or changes a container (`nvoci.inject`).
"""
