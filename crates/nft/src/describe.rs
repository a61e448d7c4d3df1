//! Saying in words what a message of a batch asked for, from its bytes: only refused batches pay for it.

use crate::message::{Attributes, Message, Messages, text};
use crate::uapi::{chain, elements, msg, object, rule, set, subsystem};

/// What message number `index` of a batch was to do; 0 is the opening message.
pub(crate) fn action(batch: &[u8], index: u32) -> String {
    let messages = || Messages::new(batch).map_while(Result::ok);
    let Some(message) = messages().find(|message| message.sequence == index) else {
        return format!("take message {index}");
    };
    if message.kind >> 8 != subsystem::NFTABLES {
        return "make the transaction".to_owned();
    }
    let operation = message.kind & 0xff;
    let table = name(&message, 1);
    let of_table = format!("of table `{table}`");
    match operation {
        msg::NEWTABLE => format!("add table `{table}`"),
        msg::DELTABLE => format!("delete table `{table}`"),
        msg::NEWCHAIN => format!("add chain `{}` {of_table}", name(&message, chain::NAME)),
        msg::DELCHAIN => format!("delete chain `{}` {of_table}", name(&message, chain::NAME)),
        msg::NEWRULE => {
            let chain = message.attributes().find(rule::CHAIN);
            let same_chain = |other: &Message<'_>| {
                other.kind == message.kind
                    && other.sequence <= index
                    && other.attributes().find(rule::CHAIN) == chain
                    && other.attributes().find(rule::TABLE) == message.attributes().find(rule::TABLE)
            };
            let number = messages().filter(same_chain).count();
            format!("add rule {number} of chain `{}` {of_table}", name(&message, rule::CHAIN))
        }
        msg::DELRULE => format!("flush chain `{}` {of_table}", name(&message, rule::CHAIN)),
        msg::NEWSET => format!("add set `{}` {of_table}", name(&message, set::NAME)),
        msg::DELSET => format!("delete set `{}` {of_table}", name(&message, set::NAME)),
        msg::NEWSETELEM => format!("add {} {of_table}", elements_of(&message)),
        msg::DELSETELEM => format!("delete {} {of_table}", elements_of(&message)),
        msg::NEWOBJ => format!("add counter `{}` {of_table}", name(&message, object::NAME)),
        msg::DELOBJ => format!("delete counter `{}` {of_table}", name(&message, object::NAME)),
        other => format!("do operation {other} {of_table}"),
    }
}

fn elements_of(message: &Message<'_>) -> String {
    let set = name(message, elements::SET);
    match message.attributes().find(elements::ELEMENTS) {
        Some(list) => format!("{} element(s) of set `{set}`", Attributes::new(list).count()),
        None => format!("all elements of set `{set}`"),
    }
}

fn name(message: &Message<'_>, attribute: u16) -> String {
    message.attributes().find(attribute).map(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Chain, Field, Set, Table, rule};
    use std::net::Ipv4Addr;

    #[test]
    fn every_message_can_be_told_in_words() {
        let table = Table::inet("fence");
        let mut batch = Batch::new();
        batch
            .add_table(&table)
            .add_chain(&table, &Chain::regular("one"))
            .add_chain(&table, &Chain::regular("two"))
            .add_rule(&table, "one", rule().accept())
            .add_rule(&table, "two", rule().accept())
            .add_rule(&table, "one", rule().drop())
            .add_set(&table, &Set::new("bound", [Field::Ipv4]))
            .add_elements(&table, "bound", [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED])
            .flush_set(&table, "bound");
        let bytes = batch.finish().unwrap().unwrap().bytes;
        let told: Vec<_> = (0..=9).map(|index| action(&bytes, index)).collect();
        assert_eq!(
            told,
            [
                "make the transaction",
                "add table `fence`",
                "add chain `one` of table `fence`",
                "add chain `two` of table `fence`",
                "add rule 1 of chain `one` of table `fence`",
                "add rule 1 of chain `two` of table `fence`",
                "add rule 2 of chain `one` of table `fence`",
                "add set `bound` of table `fence`",
                "add 2 element(s) of set `bound` of table `fence`",
                "delete all elements of set `bound` of table `fence`",
            ]
        );
    }
}
