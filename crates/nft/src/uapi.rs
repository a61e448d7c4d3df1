//! Numbers of the kernel's interface: `linux/netfilter/nf_tables.h`, `nfnetlink.h`, `nfnetlink_log.h` and
//! `nfnetlink_conntrack.h`.
//!
//! One module for each attribute space or enumeration, with the header's names less their prefix.

/// `NFNL_SUBSYS_*`, the high byte of a message's type.
pub(crate) mod subsystem {
    pub(crate) const CTNETLINK: u16 = 1;
    pub(crate) const ULOG: u16 = 4;
    pub(crate) const NFTABLES: u16 = 10;
}

/// `NFNL_MSG_BATCH_*`.
pub(crate) mod batch {
    pub(crate) const BEGIN: u16 = 0x10;
    pub(crate) const END: u16 = 0x11;
}

/// `NFPROTO_*`.
pub(crate) mod nfproto {
    pub(crate) const UNSPEC: u8 = 0;
    pub(crate) const INET: u8 = 1;
    pub(crate) const IPV4: u8 = 2;
    pub(crate) const IPV6: u8 = 10;
}

/// `NFT_MSG_*`, the low byte of a message's type.
pub(crate) mod msg {
    pub(crate) const NEWTABLE: u16 = 0;
    pub(crate) const GETTABLE: u16 = 1;
    pub(crate) const DELTABLE: u16 = 2;
    pub(crate) const NEWCHAIN: u16 = 3;
    pub(crate) const DELCHAIN: u16 = 5;
    pub(crate) const NEWRULE: u16 = 6;
    pub(crate) const DELRULE: u16 = 8;
    pub(crate) const NEWSET: u16 = 9;
    pub(crate) const DELSET: u16 = 11;
    pub(crate) const NEWSETELEM: u16 = 12;
    pub(crate) const GETSETELEM: u16 = 13;
    pub(crate) const DELSETELEM: u16 = 14;
    pub(crate) const NEWOBJ: u16 = 18;
    pub(crate) const GETOBJ: u16 = 19;
    pub(crate) const DELOBJ: u16 = 20;
    pub(crate) const GETOBJ_RESET: u16 = 21;
}

/// `NFTA_LIST_*`.
pub(crate) mod list {
    pub(crate) const ELEM: u16 = 1;
}

/// `NFTA_TABLE_*` and `NFT_TABLE_F_*`.
pub(crate) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const FLAGS: u16 = 2;
    pub(crate) const OWNER: u16 = 7;
    pub(crate) const F_OWNER: u32 = 2;
}

/// `NFTA_CHAIN_*`, `NFTA_HOOK_*` and `NFT_CHAIN_*`.
pub(crate) mod chain {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const HOOK_HOOKNUM: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
}

/// `NFTA_RULE_*`.
pub(crate) mod rule {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const EXPRESSIONS: u16 = 4;
}

/// `NFTA_SET_*`, `NFTA_SET_DESC_*`, `NFTA_SET_FIELD_*` and `NFT_SET_*`.
pub(crate) mod set {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const KEY_TYPE: u16 = 4;
    pub(crate) const KEY_LEN: u16 = 5;
    pub(crate) const DATA_TYPE: u16 = 6;
    pub(crate) const DATA_LEN: u16 = 7;
    pub(crate) const DESC: u16 = 9;
    pub(crate) const ID: u16 = 10;
    pub(crate) const TIMEOUT: u16 = 11;
    pub(crate) const USERDATA: u16 = 13;
    pub(crate) const DESC_SIZE: u16 = 1;
    pub(crate) const DESC_CONCAT: u16 = 2;
    pub(crate) const FIELD_LEN: u16 = 1;
    pub(crate) const F_INTERVAL: u32 = 0x4;
    pub(crate) const F_MAP: u32 = 0x8;
    pub(crate) const F_TIMEOUT: u32 = 0x10;
    pub(crate) const F_EVAL: u32 = 0x20;
    pub(crate) const F_CONCAT: u32 = 0x80;
}

/// `NFTA_SET_ELEM_LIST_*`.
pub(crate) mod elements {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const SET: u16 = 2;
    pub(crate) const ELEMENTS: u16 = 3;
}

/// `NFTA_SET_ELEM_*` and `NFT_SET_ELEM_*`.
pub(crate) mod element {
    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const TIMEOUT: u16 = 4;
    pub(crate) const EXPIRATION: u16 = 5;
    pub(crate) const KEY_END: u16 = 10;
    pub(crate) const F_INTERVAL_END: u32 = 1;
}

/// `NFTA_DATA_*`, `NFTA_VERDICT_*` and `NFT_DATA_*`.
pub(crate) mod data {
    pub(crate) const VALUE: u16 = 1;
    pub(crate) const VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;
    pub(crate) const TYPE_VERDICT: u32 = 0xffff_ff00;
}

/// `NF_DROP`, `NF_ACCEPT` and `NFT_*` verdicts.
pub(crate) mod verdict {
    pub(crate) const DROP: i32 = 0;
    pub(crate) const ACCEPT: i32 = 1;
    pub(crate) const JUMP: i32 = -3;
    pub(crate) const GOTO: i32 = -4;
    pub(crate) const RETURN: i32 = -5;
}

/// `NFTA_OBJ_*` and `NFT_OBJECT_*`.
pub(crate) mod object {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const TYPE: u16 = 3;
    pub(crate) const DATA: u16 = 4;
    pub(crate) const TYPE_COUNTER: u32 = 1;
}

/// `NFTA_COUNTER_*`.
pub(crate) mod counter {
    pub(crate) const BYTES: u16 = 1;
    pub(crate) const PACKETS: u16 = 2;
}

/// `NFTA_EXPR_*`.
pub(crate) mod expr {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DATA: u16 = 2;
}

/// `NFULNL_MSG_*`, `NFULA_CFG_*` and `NFULNL_*` of a packet log.
pub(crate) mod ulog {
    pub(crate) const MSG_PACKET: u16 = 0;
    pub(crate) const MSG_CONFIG: u16 = 1;
    pub(crate) const CFG_CMD: u16 = 1;
    pub(crate) const CFG_MODE: u16 = 2;
    pub(crate) const CFG_NLBUFSIZ: u16 = 3;
    pub(crate) const CFG_TIMEOUT: u16 = 4;
    pub(crate) const CFG_QTHRESH: u16 = 5;
    pub(crate) const CFG_FLAGS: u16 = 6;
    pub(crate) const CMD_BIND: u8 = 1;
    pub(crate) const CMD_UNBIND: u8 = 2;
    pub(crate) const COPY_PACKET: u8 = 2;
    pub(crate) const FLAG_SEQ: u16 = 1;
    pub(crate) const NLBUFSIZ_MIN: u32 = 4096;
    pub(crate) const NLBUFSIZ_MAX: u32 = 131_072;
}

/// `NFULA_*`: the attributes of a logged packet.
pub(crate) mod packet {
    pub(crate) const PACKET_HDR: u16 = 1;
    pub(crate) const MARK: u16 = 2;
    pub(crate) const IFINDEX_INDEV: u16 = 4;
    pub(crate) const IFINDEX_OUTDEV: u16 = 5;
    pub(crate) const PAYLOAD: u16 = 9;
    pub(crate) const PREFIX: u16 = 10;
    pub(crate) const UID: u16 = 11;
    pub(crate) const SEQ: u16 = 12;
    pub(crate) const GID: u16 = 14;
}

/// `NFNLGRP_*`.
pub(crate) mod group {
    pub(crate) const CONNTRACK_DESTROY: u32 = 3;
}

/// `IPCTNL_MSG_CT_*`, `CTA_*` and `IPS_*` of tracked connections.
pub(crate) mod ct {
    pub(crate) const MSG_GET: u16 = 1;
    pub(crate) const MSG_DELETE: u16 = 2;
    pub(crate) const TUPLE_ORIG: u16 = 1;
    pub(crate) const TUPLE_REPLY: u16 = 2;
    pub(crate) const STATUS: u16 = 3;
    pub(crate) const PROTOINFO: u16 = 4;
    pub(crate) const TIMEOUT: u16 = 7;
    pub(crate) const MARK: u16 = 8;
    pub(crate) const COUNTERS_ORIG: u16 = 9;
    pub(crate) const COUNTERS_REPLY: u16 = 10;
    pub(crate) const ID: u16 = 12;
    pub(crate) const TIMESTAMP: u16 = 20;
    pub(crate) const MARK_MASK: u16 = 21;
    pub(crate) const TUPLE_IP: u16 = 1;
    pub(crate) const TUPLE_PROTO: u16 = 2;
    pub(crate) const IP_V4_SRC: u16 = 1;
    pub(crate) const IP_V4_DST: u16 = 2;
    pub(crate) const IP_V6_SRC: u16 = 3;
    pub(crate) const IP_V6_DST: u16 = 4;
    pub(crate) const PROTO_NUM: u16 = 1;
    pub(crate) const PROTO_SRC_PORT: u16 = 2;
    pub(crate) const PROTO_DST_PORT: u16 = 3;
    /// Identifier, type and code.
    pub(crate) const ICMP: [u16; 3] = [4, 5, 6];
    /// As [`ICMP`].
    pub(crate) const ICMPV6: [u16; 3] = [7, 8, 9];
    pub(crate) const PROTOINFO_TCP: u16 = 1;
    pub(crate) const TCP_STATE: u16 = 1;
    pub(crate) const COUNTERS_PACKETS: u16 = 1;
    pub(crate) const COUNTERS_BYTES: u16 = 2;
    pub(crate) const TIMESTAMP_START: u16 = 1;
    pub(crate) const TIMESTAMP_STOP: u16 = 2;
    pub(crate) const STATUS_ASSURED: u32 = 1 << 2;
}
