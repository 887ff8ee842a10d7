package main

import (
	"fmt"

	"example.com/broker/broker/policy"
	"github.com/spf13/cobra"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "check a policy before it is put in force",
		Long: `Check a policy before it is put in force: check says whether it loads, test what it
would change for what was used.`,
		Example: "  broker policy check broker.yaml\n  broker policy test broker.yaml --since 30d",
		Args:    cobra.NoArgs,
	}
	cmd.AddCommand(policyTest(), &cobra.Command{
		Use:     "check FILE",
		Short:   "check a configuration and compile its policy",
		Long:    "Check broker.yaml as broker serve would read it, without starting anything.",
		Example: "  broker policy check broker.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := readBrokerConfig(args[0])
			if err != nil {
				return err
			}
			rules, observed := fmt.Sprintf("%d rules", len(c.Policy)), 0
			for _, r := range c.Policy {
				if r.Mode == policy.Observe.String() {
					observed++
				}
			}
			if observed > 0 {
				rules += fmt.Sprintf(" (%d only observed)", observed)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %d servers: good\n", args[0], rules, len(c.servers))
			return err
		},
	})
	return cmd
}
