package api

import (
	"github.com/whence-db/whence/authz"
	c "github.com/whence-db/whence/proto/gen/whence/v1/whencev1connect"
)

// rule says who may make a call and what it is charged. Exactly one of action
// (agents) and role (operators and users) is set, but for an agent's call about its own
// task, which any action-less agent credential may make.
type rule struct {
	action authz.Action
	role   authz.Role
	charge int64 // calls
}

func agent(a authz.Action, charge int64) rule { return rule{action: a, charge: charge} }
func operator(r authz.Role) rule              { return rule{role: r} }

// user is for calls that users make about their own grants and tasks. Operators
// make them too: their handlers let nobody near without asking standing.
func user() rule { return operator(authz.RoleUser) }

// policy has every procedure; one that is missing is refused, and a test holds
// it against the contract. Polling and delegation cost no call.
var policy = map[string]rule{
	c.MemoryServiceQueryProcedure:        agent(authz.MemoryRead, 1),
	c.MemoryServiceGetRecordProcedure:    agent(authz.MemoryRead, 1),
	c.MemoryServiceListVersionsProcedure: agent(authz.MemoryRead, 1),
	c.MemoryServiceRememberProcedure:     agent(authz.MemoryWrite, 1),
	c.MemoryServiceForgetProcedure:       agent(authz.MemoryWrite, 1),
	c.MemoryServiceReportAnswerProcedure: agent(authz.MemoryRead, 0),
	c.MemoryServiceWatchAnswersProcedure: agent(authz.MemoryRead, 0),

	c.TaskServiceGetTaskProcedure:  agent("", 0),
	c.TaskServiceDelegateProcedure: agent(authz.TaskDelegate, 0),
	c.TaskServiceEndTaskProcedure:  agent("", 0),

	c.ActionServiceListActionsProcedure:  agent(authz.ActionExecute, 0),
	c.ActionServicePreviewProcedure:      agent(authz.ActionExecute, 1),
	c.ActionServiceExecuteProcedure:      agent(authz.ActionExecute, 1),
	c.ActionServiceGetExecutionProcedure: agent(authz.ActionExecute, 0),
	c.ActionServiceUndoProcedure:         agent(authz.ActionExecute, 1),

	c.SourceServiceCreateSourceProcedure:    operator(authz.RoleAdmin),
	c.SourceServiceListSourcesProcedure:     operator(authz.RoleViewer),
	c.SourceServiceGetSourceProcedure:       operator(authz.RoleViewer),
	c.SourceServicePauseSourceProcedure:     operator(authz.RoleAdmin),
	c.SourceServiceResumeSourceProcedure:    operator(authz.RoleAdmin),
	c.SourceServiceDeleteSourceProcedure:    operator(authz.RoleAdmin),
	c.SourceServicePreviewTableProcedure:    operator(authz.RoleAdmin),
	c.SourceServiceRegisterTableProcedure:   operator(authz.RoleAdmin),
	c.SourceServiceListTablesProcedure:      operator(authz.RoleViewer),
	c.SourceServiceGetTableProcedure:        operator(authz.RoleViewer),
	c.SourceServiceWatchTableProcedure:      operator(authz.RoleViewer),
	c.SourceServiceReembedTableProcedure:    operator(authz.RoleAdmin),
	c.SourceServiceUnregisterTableProcedure: operator(authz.RoleAdmin),

	c.AuditServiceListEntriesProcedure:   operator(authz.RoleViewer),
	c.AuditServiceGetAnswerProcedure:     operator(authz.RoleViewer),
	c.AuditServiceListAnswersProcedure:   operator(authz.RoleViewer),
	c.AuditServiceTraceRecordProcedure:   operator(authz.RoleViewer),
	c.AuditServiceReplayAnswerProcedure:  operator(authz.RoleViewer),
	c.AuditServiceGetCheckpointProcedure: operator(authz.RoleViewer),
	c.AuditServiceGetProofProcedure:      operator(authz.RoleViewer),
	c.AuditServiceExportProcedure:        operator(authz.RoleViewer),

	c.ApprovalServiceListApprovalsProcedure:  operator(authz.RoleViewer),
	c.ApprovalServiceGetApprovalProcedure:    operator(authz.RoleViewer),
	c.ApprovalServiceApproveProcedure:        operator(authz.RoleApprover),
	c.ApprovalServiceDenyProcedure:           operator(authz.RoleApprover),
	c.ApprovalServiceWatchApprovalsProcedure: operator(authz.RoleViewer),

	c.AdminServiceListTasksProcedure:             user(),
	c.AdminServiceListSpacesProcedure:            operator(authz.RoleViewer),
	c.AdminServiceCreateSpaceProcedure:           operator(authz.RoleAdmin),
	c.AdminServiceSwitchSpaceProcedure:           operator(authz.RoleAdmin),
	c.AdminServiceDeleteSpaceProcedure:           operator(authz.RoleAdmin),
	c.AdminServiceRevokeProcedure:                user(),
	c.AdminServiceListRevocationsProcedure:       operator(authz.RoleViewer),
	c.AdminServiceReinstateProcedure:             operator(authz.RoleAdmin),
	c.AdminServiceListKeysProcedure:              operator(authz.RoleViewer),
	c.AdminServiceRotateKeyProcedure:             operator(authz.RoleAdmin),
	c.AdminServiceCreateAgentProcedure:           operator(authz.RoleAdmin),
	c.AdminServiceGetAgentProcedure:              operator(authz.RoleViewer),
	c.AdminServiceListAgentsProcedure:            operator(authz.RoleViewer),
	c.AdminServiceUpdateAgentProcedure:           operator(authz.RoleAdmin),
	c.AdminServiceDeleteAgentProcedure:           operator(authz.RoleAdmin),
	c.AdminServiceCreateGrantProcedure:           user(),
	c.AdminServiceGetGrantProcedure:              user(),
	c.AdminServiceListGrantsProcedure:            user(),
	c.AdminServiceUpdateGrantProcedure:           user(),
	c.AdminServiceDeleteGrantProcedure:           user(),
	c.AdminServiceCreateIssuerProcedure:          operator(authz.RoleAdmin),
	c.AdminServiceGetIssuerProcedure:             operator(authz.RoleViewer),
	c.AdminServiceListIssuersProcedure:           operator(authz.RoleViewer),
	c.AdminServiceDeleteIssuerProcedure:          operator(authz.RoleAdmin),
	c.AdminServiceCreateUpstreamProcedure:        operator(authz.RoleAdmin),
	c.AdminServiceGetUpstreamProcedure:           operator(authz.RoleViewer),
	c.AdminServiceListUpstreamsProcedure:         operator(authz.RoleViewer),
	c.AdminServiceUpdateUpstreamProcedure:        operator(authz.RoleAdmin),
	c.AdminServiceDeleteUpstreamProcedure:        operator(authz.RoleAdmin),
	c.AdminServiceRegisterActionProcedure:        operator(authz.RoleAdmin),
	c.AdminServiceGetRegisteredActionProcedure:   operator(authz.RoleViewer),
	c.AdminServiceListRegisteredActionsProcedure: operator(authz.RoleViewer),
	c.AdminServiceUnregisterActionProcedure:      operator(authz.RoleAdmin),
}
