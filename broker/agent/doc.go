// Package agent runs beside MCP servers and holds their credentials.
//
// An [Agent] reaches servers through an [Upstream] each and opens one
// connection to it a session. The broker uses it in its own process:
//
//	a := &agent.Agent{Servers: map[string]agent.Upstream{
//		"files": &agent.Stdio{Command: []string{"mcp-files", "/srv"}},
//	}}
//	conn, err := a.Open(ctx, agent.Session{ID: id, Server: "files"})
//
// or far away, where it dials the broker and keeps tunnels to it:
//
//	l := &agent.Link{Agent: a, Broker: "broker.example.com:8443", Name: "gke-prod", …}
//	err := l.Run(ctx)
//
// Nothing dials in to an agent. Frames pass through it unread: the broker has
// judged them. The one exception is what a server prints before its first
// frame (see [Stdio]).
package agent
