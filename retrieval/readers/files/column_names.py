"""The names that people give to fields of messages, documents, questions and tables, to propose a mapping."""

from __future__ import annotations

#: By kind and field: names in small letters without signs, the likeliest first.
LIKELY_NAMES: dict[str, dict[str, str]] = {
    "threads": {
        "id": "id messageid msgid postid commentid tweetid statusid replyid uuid guid num no number key "
        "rowid index",
        "text": "text body content message comment msg post fulltext selftext messagetext description "
        "caption",
        "parent": "parent parentid replyto replytoid inreplyto inreplytoid inreplytostatusid "
        "replytomessageid inresponseto inresponsetotweetid parentmessageid parentcommentid parentpostid "
        "replytopostid answerto respondsto repliedto reply",
        "author": "author authorname user username name from sender sendername speaker by nick nickname "
        "login screenname displayname authorid userid senderid",
        "time": "time timestamp date datetime createdat created createdutc createdtime sentat sent "
        "publishedat published postedat ts",
        "thread": "thread threadid conversation conversationid conversationname channel channelid room "
        "roomid topic topicid dialogueid dialogid chatid chat linkid rootid",
    },
    "documents": {
        "id": "id docid documentid articleid pageid uuid url uri path filename file key number no title",
        "text": "text body content document passage article page fulltext context description summary",
        "title": "title name heading headline subject",
        "time": "time timestamp date datetime createdat created publishedat published updatedat",
    },
    "questions": {
        "id": "id qid questionid queryid uuid key number no",
        "question": "question query prompt utterance instruction ask",
        "answers": "answers answer response reply output completion target targetvalue label goldanswer",
        "document_id": "documentid docid document doc contextid passageid source file pageid articleid url",
        "time": "time timestamp date askedat createdat",
    },
    "tables": {
        "id": "tableid tablename tablekey",
        "cells": "table cells rows tablerows tabledata tablearray tabletext tablecontents data values grid",
        "header": "header headers tableheader columnheaders columnnames columns tablecolumns",
        "title": "title caption tabletitle tablecaption pagetitle tablepagetitle heading",
    },
    "table_questions": {
        "id": "id qid questionid queryid uuid key number no",
        "question": "question query utterance prompt statement ask",
        "answers": "answers answer answertext response output completion target targetvalue label goldanswer",
        "table_id": "tableid tablefile tablepath tablename table context file filename csv sheet source",
    },
}
#: The fields that a mapping must have, by kind.
NEEDED = {
    "threads": ("id", "text", "parent"),
    "documents": ("id", "text"),
    "questions": ("question", "answers", "document_id"),
    "tables": ("cells",),
    "table_questions": ("question", "answers"),
}
