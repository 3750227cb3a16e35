"""Frequent English words, so that text nobody trained on still costs few tokens."""

from typing import Final

_TEXT = """
the be to of and a in that have it for not on with he as you do at this but his by from they we
say her she or an will my one all would there their what so up out if about who get which go me
when make can like time no just him know take people into year your good some could them see
other than then now look only come its over think also back after use two how our work first
well way even new want because any these give day most us is are was were been has had did does
said made find long great where through much before line right too means old same tell boy
follow came show around form three small set put end does another large must big such turn here
why ask went men read need land home move try kind hand picture again change off play spell air
away animal house point page letter mother answer found study still learn should world high
every near add food between own below country plant last school father keep tree never start
city earth eye light thought head under story saw left few while along might close something
seem next hard open example begin life always those both paper together got group often run
important until children side feet car mile night walk white sea began grow took river four
carry state once book hear stop without second later miss idea enough eat face watch far really
almost let above girl sometimes mountain cut young talk soon list song being leave family body
music color stand sun question fish area mark dog horse birds problem complete room knew since
ever piece told usually friends easy heard order red door sure become top ship across today
during short better best however low hours black products happened whole measure remember early
waves image images picture pictures photo photos shape shapes colour colours object objects
please describe assistant helpful user system answer questions question model detail sentence
word words number numbers explain write code text summary table json format python function
computer data language english french following different between compare difference similar
identify visible contains contain located
"""
ENGLISH: Final = tuple(_TEXT.split())
