// Package broker is the core: who may use which server, and what passes.
//
// A [Broker] gets connections from package stream, knows who is at the other
// end, finds the rule that decides, opens the server through an agent and runs
// the session:
//
//	b, err := broker.New(broker.Options{…})
//	l, err := stream.Listen("127.0.0.1:8443", stream.Options{TLS: b.TLS(…)})
//	err = l.Serve(ctx, b.Handlers())
//
// A session is two streams of frames. Each frame passes the same stages, in
// this order, and no other way leads from one side to the other:
//
//	c2s   split → check → judge → record → deliver to the server
//	s2c   split → check → filter, mask → record → deliver to the client
//
// A frame is on record before it is delivered. A frame that nobody had to
// change is delivered as it came. What the broker refuses, it answers in the
// client's protocol, and the session goes on; what it cannot do (judge, record,
// reach the server) ends the session.
package broker
