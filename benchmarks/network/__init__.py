"""Replicas on simulated machines, and what clients see while machines and links fail.

    python -m benchmarks.network --json

Every machine has its own network, processes and ``/tmp`` (Linux namespaces), and is linked to one
switch. It runs several replicas of the application with mock engines, in one process, and HAProxy
as Ray Serve configures it on a cluster. A load balancer in front checks the HAProxy of every
machine. Tokens of the mock engine are a function of the seed and the position, so every answer is
checked. Ray itself does not run here: the machines' list of replicas is fixed, and a machine gets
its own replicas back when it is switched on again.

    hosts       machines and links: cut, isolated from some others, narrowed
    host        the first process of a machine
    replicas    the replicas and the HAProxy of a machine
    clock       a wrong clock for a machine's Python processes
    service     the machines and the load balancer
    cases       the faults, the clients, the report
    command     the command line, which enters namespaces of its own first

Nothing is left behind, however a run ends: the kernel removes namespaces with their processes.
"""
