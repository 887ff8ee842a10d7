package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"
	"time"

	"example.com/broker/broker/console"
	"example.com/broker/broker/grant"
	"github.com/spf13/cobra"
)

// accessCommands are those by which one asks for access, decides, and ends it.
func accessCommands() []*cobra.Command {
	return []*cobra.Command{
		whoami(), servers(), requestCommand(), requests(), decide("approve", true), decide("deny", false), grants(),
		revoke(), review(), disable(), enable(),
	}
}

// apiCommand is a command that calls the API: do prints to out what it has got,
// or returns it to be printed as JSON.
func apiCommand(cmd *cobra.Command, do func(cmd *cobra.Command, c *apiClient, args []string) (result any, print func(io.Writer), err error)) *cobra.Command {
	var (
		client clientFlags
		asJSON bool
	)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := client.api()
		if err != nil {
			return err
		}
		result, print, err := do(cmd, c, args)
		if err != nil {
			return err
		}
		if asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
		}
		table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		print(table)
		return table.Flush()
	}
	client.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the broker answers, as JSON")
	return cmd
}

func whoami() *cobra.Command {
	return apiCommand(&cobra.Command{
		Use: "whoami", Short: "who you are to the broker", Args: cobra.NoArgs,
		Example: "  broker whoami --broker mcp.example.com:8443",
	}, func(cmd *cobra.Command, c *apiClient, _ []string) (any, func(io.Writer), error) {
		var me console.Me
		err := c.call(cmd.Context(), "GET", "/api/v1/me", nil, &me)
		return me, func(w io.Writer) {
			fmt.Fprintln(w, "SUBJECT\tGROUPS\tADMIN")
			fmt.Fprintf(w, "%s\t%q\t%v\n", me.Subject, me.Groups, me.Admin)
		}, err
	})
}

func servers() *cobra.Command {
	return apiCommand(&cobra.Command{
		Use: "servers", Short: "what you may reach, and on what terms", Args: cobra.NoArgs,
		Example: "  broker servers --broker mcp.example.com:8443",
	}, func(cmd *cobra.Command, c *apiClient, _ []string) (any, func(io.Writer), error) {
		var list []console.Server
		err := c.call(cmd.Context(), "GET", "/api/v1/servers", nil, &list)
		return list, func(w io.Writer) {
			fmt.Fprintln(w, "SERVER\tACCESS\tRULE\tUNTIL")
			for _, s := range list {
				until := "-"
				if !s.Until.IsZero() {
					until = s.Until.Local().Format(time.DateTime)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, s.Access, s.Rule, until)
			}
		}, err
	})
}

func requestCommand() *cobra.Command {
	var (
		ask  console.Ask
		time time.Duration
		wait bool
	)
	cmd := apiCommand(&cobra.Command{
		Use:   "request SERVER",
		Short: "ask for access to a server",
		Long: `Ask for access to a server ahead of using it. The answer names the request and
its page. With --wait the command returns when the request is decided, and fails
if it is not granted.`,
		Example: `  broker request bigquery --reason "OPS-12: the bill" --for 1h --wait`,
		Args:    cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, c *apiClient, args []string) (any, func(io.Writer), error) {
		ask.Server, ask.Duration = args[0], grant.Duration(time)
		if time < 0 {
			return nil, nil, usagef("--for %s: must be above 0", time)
		}
		var r grant.Request
		err := c.call(cmd.Context(), "POST", "/api/v1/requests", ask, &r)
		if err == nil && wait && r.State == grant.Pending {
			fmt.Fprintf(cmd.ErrOrStderr(), "broker: request %s waits for a decision by %s\n", r.ID, r.Approvers)
		}
		for err == nil && wait && r.State == grant.Pending {
			err = c.call(cmd.Context(), "GET", "/api/v1/requests/"+r.ID+"?wait=1", nil, &r)
		}
		if err == nil && wait && r.State != grant.Granted {
			err = fmt.Errorf("request %s is %s", r.ID, r.State)
		}
		return r, func(w io.Writer) { printRequests(w, r) }, err
	})
	cmd.Flags().StringVar(&ask.Reason, "reason", "", "why, for the people who decide")
	cmd.Flags().DurationVar(&time, "for", 0, "how long, like 30m or 1h (default: what the rule says)")
	cmd.Flags().BoolVar(&ask.BreakGlass, "break-glass", false, "take access at once, in an emergency; everybody is told, and it is reviewed after")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for the decision")
	return cmd
}

func printRequests(w io.Writer, list ...grant.Request) {
	fmt.Fprintln(w, "REQUEST\tSTATE\tSUBJECT\tSERVER\tFOR\tREASON\tDECIDED BY")
	for _, r := range list {
		what := time.Duration(r.Duration).String()
		if r.Call != nil {
			what = "one call of " + r.Call.Name
		}
		by := r.Approvers.String()
		if len(r.Decisions) > 0 {
			by = ""
			for i, d := range r.Decisions {
				if i > 0 {
					by += ", "
				}
				by += d.By
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.State, r.Subject, r.Server, what, r.Reason, by)
	}
}

func requests() *cobra.Command {
	var all bool
	cmd := apiCommand(&cobra.Command{
		Use: "requests", Short: "list requests: yours, and those that you may decide on", Args: cobra.NoArgs,
		Example: "  broker requests --all --json",
	}, func(cmd *cobra.Command, c *apiClient, _ []string) (any, func(io.Writer), error) {
		path := "/api/v1/requests"
		if all {
			path += "?all=1"
		}
		var list []grant.Request
		err := c.call(cmd.Context(), "GET", path, nil, &list)
		return list, func(w io.Writer) { printRequests(w, list...) }, err
	})
	cmd.Flags().BoolVar(&all, "all", false, "those that are decided, too, newest first")
	return cmd
}

func decide(name string, yes bool) *cobra.Command {
	var comment string
	cmd := apiCommand(&cobra.Command{
		Use: name + " REQUEST", Short: name + " a request", Args: cobra.ExactArgs(1),
		Example: "  broker " + name + ` req-7ks2maqx4d --comment "for this incident"`,
	}, func(cmd *cobra.Command, c *apiClient, args []string) (any, func(io.Writer), error) {
		var r grant.Request
		err := c.call(cmd.Context(), "POST", "/api/v1/requests/"+url.PathEscape(args[0])+"/decision", console.Decision{Approve: yes, Comment: comment}, &r)
		return r, func(w io.Writer) { printRequests(w, r) }, err
	})
	cmd.Flags().StringVar(&comment, "comment", "", "what the person who asked reads")
	return cmd
}

func printGrants(w io.Writer, list ...grant.Grant) {
	fmt.Fprintln(w, "GRANT\tSTATE\tSUBJECT\tSERVER\tUNTIL\tHOW\tREQUEST")
	for _, g := range list {
		server := g.Server
		if g.Call != nil {
			server += " (one call of " + g.Call.Name + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", g.ID, g.State, g.Subject, server, g.Until.Local().Format(time.DateTime), g.How, g.Request)
	}
}

func grants() *cobra.Command {
	var all bool
	cmd := apiCommand(&cobra.Command{
		Use: "grants", Short: "list access in force: yours, and what you may revoke", Args: cobra.NoArgs,
		Example: "  broker grants --json",
	}, func(cmd *cobra.Command, c *apiClient, _ []string) (any, func(io.Writer), error) {
		path := "/api/v1/grants"
		if all {
			path += "?all=1"
		}
		var list []grant.Grant
		err := c.call(cmd.Context(), "GET", path, nil, &list)
		return list, func(w io.Writer) { printGrants(w, list...) }, err
	})
	cmd.Flags().BoolVar(&all, "all", false, "what has ended, too")
	return cmd
}

func revoke() *cobra.Command {
	var reason string
	cmd := apiCommand(&cobra.Command{
		Use: "revoke GRANT", Short: "end access at once, running sessions too", Args: cobra.ExactArgs(1),
		Example: "  broker revoke gr-k3x9w2mzqa --reason done",
	}, func(cmd *cobra.Command, c *apiClient, args []string) (any, func(io.Writer), error) {
		var g grant.Grant
		err := c.call(cmd.Context(), "POST", "/api/v1/grants/"+url.PathEscape(args[0])+"/revoke", console.Why{Reason: reason}, &g)
		return g, func(w io.Writer) { printGrants(w, g) }, err
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return cmd
}

func review() *cobra.Command {
	var comment string
	cmd := apiCommand(&cobra.Command{
		Use: "review GRANT", Short: "put on record that you have looked at what was done by breaking the glass", Args: cobra.ExactArgs(1),
		Example: `  broker review gr-k3x9w2mzqa --comment "the outage of Monday"`,
	}, func(cmd *cobra.Command, c *apiClient, args []string) (any, func(io.Writer), error) {
		var g grant.Grant
		err := c.call(cmd.Context(), "POST", "/api/v1/grants/"+url.PathEscape(args[0])+"/review", console.Why{Reason: comment}, &g)
		return g, func(w io.Writer) { printGrants(w, g) }, err
	})
	cmd.Flags().StringVar(&comment, "comment", "", "what you found, for the record")
	return cmd
}

func disable() *cobra.Command {
	var reason string
	cmd := apiCommand(&cobra.Command{
		Use:   "disable KIND NAME",
		Short: "refuse an identity from now on, and end its sessions",
		Long: `Refuse an identity from now on, whatever certificate it shows, and end its
sessions, grants and tunnels. KIND is user (NAME is the subject), agent, or
serial (NAME is a certificate's serial number, in hex). For admins.`,
		Example: "  broker disable user ada@example.com --reason left",
		Args:    cobra.ExactArgs(2), ValidArgs: []string{grant.User, grant.Agent, grant.Serial},
	}, func(cmd *cobra.Command, c *apiClient, args []string) (any, func(io.Writer), error) {
		var done struct{}
		err := c.call(cmd.Context(), "POST", "/api/v1/disabled", console.Disable{Kind: args[0], Name: args[1], Reason: reason}, &done)
		return done, func(io.Writer) {}, err
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return cmd
}

func enable() *cobra.Command {
	return apiCommand(&cobra.Command{
		Use: "enable KIND NAME", Short: "take back what disable did; grants stay ended", Args: cobra.ExactArgs(2),
		Example: "  broker enable user ada@example.com",
	}, func(cmd *cobra.Command, c *apiClient, args []string) (any, func(io.Writer), error) {
		var done struct{}
		err := c.call(cmd.Context(), "DELETE", "/api/v1/disabled/"+url.PathEscape(args[0])+"/"+url.PathEscape(args[1]), nil, &done)
		return done, func(io.Writer) {}, err
	})
}
